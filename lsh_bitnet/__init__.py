"""Any registered attention inside a Hugging Face model, comparisons counted."""
