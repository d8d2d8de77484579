"""What takes how long, beside its peers and floors; off by default."""
