"""Samplers: transformers (`hf`) and vLLM (`vllm`) behind one protocol."""
