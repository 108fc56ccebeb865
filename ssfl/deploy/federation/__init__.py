"""What defines a federation: keys, certificates, the roster, the folders for sites, the app bundle."""
