"""One HTML page of what `mfdan-train loso` measured, and its pictures."""
