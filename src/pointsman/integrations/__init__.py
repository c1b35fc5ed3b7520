"""Tools of other people, each in a file that alone imports it and is imported only when the tool is asked for."""
