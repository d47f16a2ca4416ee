"""The small standard-library programs around a kernel of the process backend; they run without site-packages."""
