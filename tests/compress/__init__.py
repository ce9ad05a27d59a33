"""What mends or compresses a subnet after the cut."""
