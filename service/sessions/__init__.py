"""Sessions, groups and invocations as commands on the log, and the Python interfaces that users build on.

    SessionRegistry    which sessions there are          registry.py
    GroupRegistry      who is in which group             groups.py
    InvocationRouter   calls, to whom they are meant     router.py
    SessionManager     the three of one hub, composed    manager.py
    CallerProxy        calls, as one caller makes them   proxy.py
    Hubs               the managers of a process         hubs.py

Nothing here knows a connection or a socket: commands become events, and delivery obeys those.
"""
