// Sets the theme before anything is painted: a classic script in the head, so that no light flash comes first.
// Its button is wired in wall.js. Without a choice the system's own preference holds (wall.css).
(() => {
  try {
    const chosen = localStorage.getItem("wall.theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    // Storage may be forbidden; then every visit starts with the system's preference.
  }
})();
