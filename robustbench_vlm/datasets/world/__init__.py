"""Synthetic scenes for the track `mini`: attributes of a scene, its image and its captions, all made by code."""
