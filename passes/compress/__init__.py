"""What compresses a subnet further, or mends it after a cut."""
