// Applies the chosen theme before anything is drawn: a classic script, so that it is not deferred.
try {
  const theme = localStorage.getItem("internvl-theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // Site data are blocked: as the system has it.
}
