"""A reward model behind a network address: the server, and what another computer needs to use it.

`protocol` fixes what goes over the wire and needs nothing of either side; `app` is the server, `client` and `remote`
are the other end.
"""
