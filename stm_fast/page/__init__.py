"""The page: a person draws round an object in the browser, the masks run through the video, and are corrected."""
