"""What several tests share; scripts that a test runs in a process of its own."""
