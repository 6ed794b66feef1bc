"""How Hugging Face models are adapted: leaves swapped in place, and an audit of what runs."""
