"""The page: a person draws around an object in the browser, the masks run through the video, and are corrected."""
