"""Pure functions and types: flat models, masks, saliencies, payloads and their bytes, random streams. No I/O."""
