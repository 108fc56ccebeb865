"""The installed ssfl does the work."""

from ssfl.deploy import client_app

app = client_app.app
