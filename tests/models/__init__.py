"""GPTs, experts, adapters, models of Hugging Face."""
