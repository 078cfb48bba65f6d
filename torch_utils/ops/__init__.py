"""Operators with a native kernel, a readable PyTorch twin and gradients: see library.py. Importing builds nothing."""
