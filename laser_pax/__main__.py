"""Entry point of `python -m laser_pax`."""

from laser_pax import cli

if __name__ == '__main__':
  cli.main()
