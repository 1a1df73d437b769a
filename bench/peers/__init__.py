"""Others on the task of `bench.federation`, in their own words: programs that need the package they measure and nothing of the lab."""
