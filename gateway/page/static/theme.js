// Applies the chosen theme before anything is drawn: a classic script, so that it is not deferred.
{
  const theme = localStorage.getItem("internvl-theme");
  if (theme) document.documentElement.dataset.theme = theme;
}
