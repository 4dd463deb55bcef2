"""HTTP: one client, downloads that resume and hash while bytes arrive, and files that are read in parts."""
