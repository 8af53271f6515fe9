// Before anything is painted: dark or light, as it was chosen here, or as the system has it.
"use strict";

const theme = {
  root: document.documentElement,
  system: matchMedia("(prefers-color-scheme: light)"),
};

theme.apply = () => {
  const chosen = localStorage.getItem("noc-theme");
  theme.root.dataset.theme = chosen ?? (theme.system.matches ? "light" : "dark");
};

theme.toggle = () => {
  localStorage.setItem("noc-theme", theme.root.dataset.theme === "dark" ? "light" : "dark");
  theme.apply();
};

theme.system.addEventListener("change", theme.apply);
addEventListener("storage", theme.apply);
document.addEventListener("click", (event) => {
  if (event.target.closest("[data-theme-toggle]")) theme.toggle();
});
theme.apply();
