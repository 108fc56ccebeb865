"""Pure parts: flat models, masks, saliency, payloads and their bytes, named randomness. No I/O."""
