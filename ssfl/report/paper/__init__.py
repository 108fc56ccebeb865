"""What is published about SSFL and the methods it is compared with."""
