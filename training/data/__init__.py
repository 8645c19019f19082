"""Reading pairs folders and turning them into samples."""
