"""Object store, step cache, image index, locks, downloads, garbage collection."""
