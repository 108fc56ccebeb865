"""Transport of messages between server and sites. `port` is the interface; the other modules implement it on Flower."""
