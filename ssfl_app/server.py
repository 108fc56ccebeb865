"""The installed ssfl does the work."""

from ssfl.deploy import server_app

app = server_app.app
