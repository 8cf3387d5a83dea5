"""The REST API: merges over HTTP, in the words of the command line and the tab.

``add_routes`` puts it on any FastAPI application; ``add_webui_routes`` on the WebUI's, as
open or closed as the WebUI's own API.
"""

from .routes import PREFIX, add_routes, add_webui_routes

__all__ = ["PREFIX", "add_routes", "add_webui_routes"]
