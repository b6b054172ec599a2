"""KV-cache compression for Hugging Face models, with memory that is bounded."""
