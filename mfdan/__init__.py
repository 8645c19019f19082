"""What programs that ask an mfdan service import: `mfdan.client`."""
