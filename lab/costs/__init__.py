"""What a run will send, take and hold, before it runs."""
