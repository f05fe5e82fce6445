"""Pure: machines that fail, what a failure costs -> the share of time that training keeps."""
