"""Chat models, named by one string, behind one client."""
