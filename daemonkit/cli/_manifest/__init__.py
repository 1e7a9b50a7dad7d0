"""What runs the same app elsewhere: manifests for other engines, by `daemonkit unit --for`."""
