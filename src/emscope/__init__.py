"""emscope: measure emergent misalignment along a fine-tune, and say which checkpoint is safe to ship."""

__version__ = "0.1.0"
