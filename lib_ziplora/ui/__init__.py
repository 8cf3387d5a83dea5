"""The tab: ``tab`` lays it out, ``handlers`` decides, ``text`` words it, ``serve`` serves it alone."""
