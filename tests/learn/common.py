"""Who watches a fit and remembers."""


class Silent:
    def __init__(self):
        self.said = []

    def start(self, what, total, unit):
        self.said.append((what, total, unit))

    def advance(self, by, said=""):
        self.said.append((by, said))

    def say(self, message):
        self.said.append(message)
