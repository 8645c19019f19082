"""What a prediction is: every step from bytes to verdict, framework-free but for network.py."""
