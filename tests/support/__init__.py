"""What tests share: builders of checkpoints and files, peers, a Hub on loopback."""
