"""Foreign files as samples: media, folders of pictures, CSV series, data sets."""
