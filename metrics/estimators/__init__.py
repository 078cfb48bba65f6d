"""Feature networks: the official Inception from the user's file, and the offline stand-in."""
