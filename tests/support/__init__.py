"""What tests share: real services that are started once, images, waiting, and the check that nothing is left over."""
