"""What agents promise that answer together: the policy, the pass, the rivals, settings, records."""
