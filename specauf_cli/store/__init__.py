"""What is stored on disk: layout of the runs folder, records, files, provenance, signatures."""
