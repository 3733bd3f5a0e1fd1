"""Hugging Face folders, read without transformers: config.json and .safetensors files to a float torch module."""
