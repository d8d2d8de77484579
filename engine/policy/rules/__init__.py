"""The rules that come with Bodega, one file each; others register as entry points of the group bodega.rules."""
