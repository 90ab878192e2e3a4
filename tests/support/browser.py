"""Chromium, headless, as the tests see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from .servers import executable

DEADLINE = 30  # seconds

OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Each window would load pages of the browser's own for its address bar, which cost as much as all of these tests.
    "--disable-features=WebUIOmniboxPopup,WebUIOmniboxAimPopup,WebUIOmniboxFullPopup",
    # These keep a window in the background as quick as the one in front.
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--window-size=1000,800",
)


class Window:
    """A window of the browser, which every action brings to the front."""

    def __init__(self, driver: Chrome, handle: str, url: str = "") -> None:
        self._driver = driver
        self._handle = handle
        if url:
            self.driver.get(url)

    @property
    def driver(self) -> Chrome:
        """The browser's driver, with this window in front."""
        self._driver.switch_to.window(self._handle)
        return self._driver

    def __getitem__(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """Return the texts of all matching elements in the order of the page."""
        script = "return Array.from(document.querySelectorAll(arguments[0]), (element) => element.textContent)"
        found: list[str] = self.driver.execute_script(script, selector)
        return found

    def wait(self, condition: Callable[[], object], message: str = "") -> None:
        """Wait until a condition holds. It may ask for an element that is replaced meanwhile."""
        replaced = [StaleElementReferenceException]
        WebDriverWait(self.driver, DEADLINE, 0.1, replaced).until(lambda driver: condition(), message)

    def wait_for_state(self, state: str) -> None:
        """Wait for the state of the connection that the page shows."""
        self.wait(lambda: self["#state"].get_attribute("data-state") == state, f"the state is not {state}")

    def wait_for_texts(self, selector: str, expected: list[str]) -> None:
        """Wait until the matching elements have these texts."""
        self._wait_for(lambda: self.texts(selector), expected, selector)

    def wait_for_last_texts(self, selector: str, expected: list[str]) -> None:
        """Wait until the last of the matching elements have these texts."""
        self._wait_for(lambda: self.texts(selector)[-len(expected) :], expected, f"the end of {selector}")

    def wait_for_last_text(self, selector: str, expected: str) -> None:
        """Wait until the last of the matching elements has this text."""
        self.wait_for_last_texts(selector, [expected])

    def _wait_for(self, look: Callable[[], list[str]], expected: list[str], name: str) -> None:
        try:
            self.wait(lambda: look() == expected)
        except TimeoutException:
            found = look()
            assert found == expected, f"{name} is {found}, not {expected}"

    def fill(self, selector: str, text: str) -> None:
        """Replace what is in a field by typing."""
        field = self[selector]
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.DELETE, text)

    def say(self, text: str) -> None:
        """Send a message as a user does, with the Enter key."""
        self.fill("#text", text + Keys.ENTER)


class Browser:
    """Chromium, with windows that are closed by `close_windows`."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver
        self._first = driver.current_window_handle

    def open(self, url: str) -> Window:
        """Open a window."""
        self.driver.switch_to.new_window("window")
        return Window(self.driver, self.driver.current_window_handle, url)

    def errors(self) -> list[str]:
        """Return the errors and warnings in the consoles since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]  # type: ignore[no-untyped-call]

    def close_windows(self) -> None:
        """Close all windows except the first, which is empty."""
        for handle in self.driver.window_handles:
            if handle != self._first:
                self.driver.switch_to.window(handle)
                self.driver.close()
        self.driver.switch_to.window(self._first)


@contextmanager
def chromium(directory: Path) -> Iterator[Browser]:
    """Start the browser, with its data in a directory."""
    options = ChromeOptions()
    options.binary_location = executable("chromium")
    for option in (*OPTIONS, f"--user-data-dir={directory}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, ChromeService(executable("chromedriver")))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
