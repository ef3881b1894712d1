# What lme4, metafor and R's own tests find in data.json, written to oracles.json.
# Rscript tests/oracles/oracles.R, from the root of the repository.

suppressPackageStartupMessages({
  library(jsonlite)
  library(lme4)
  library(metafor)
})

folder <- "tests/oracles"
data <- fromJSON(file.path(folder, "data.json"), simplifyDataFrame = FALSE)
LEVEL <- 0.95
MARGINS <- c(0.2, 0.8, 2)

# ---- cells ---------------------------------------------------------------------------------------

cells <- data$cells
model <- cells$model + 1
concept <- cells$concept + 1
high <- (cells$is_high - mean(cells$is_high))[model]
size <- (cells$log_size - mean(cells$log_size))[model]
rows <- data.frame(
  model = factor(model), concept = factor(concept), cell = factor(seq_along(model)),
  label = factor(cells$is_high[model]), high = high, size = size
)
rows <- cbind(rows, as.data.frame(cells$value))
V <- outer(seq_along(model), seq_along(model), Vectorize(function(i, j) {
  if (concept[i] == concept[j]) cells$covariance[concept[i], model[i], model[j]] else 0
}))

# By default metafor's and lme4's optimisers leave the sds known to some 1e-6; these go closer.
of_rma <- list(optimizer = "optim", optmethod = "BFGS", reltol = 1e-14)
of_lmer <- lmerControl(optimizer = "bobyqa", optCtrl = list(rhobeg = 0.2, rhoend = 1e-9))

# metafor adds log|X'X| / 2 to the restricted likelihood unless REMLf is FALSE (help(rma.mv)).
of_metafor <- function(fit, sds) {
  list(
    coefficients = as.list(setNames(as.vector(coef(fit)), c("intercept", "contrast", "scale"))),
    standard_errors = as.list(setNames(fit$se, c("intercept", "contrast", "scale"))),
    sds = as.list(sds),
    log_likelihood = as.numeric(logLik(fit, REML = TRUE)),
    half_log_det_of_x = as.numeric(determinant(crossprod(model.matrix(fit)))$modulus) / 2
  )
}

known_errors <- rma.mv(
  equal, V,
  mods = ~ high + size, random = list(~ 1 | model, ~ 1 | concept, ~ 1 | cell),
  data = rows, method = "REML", control = of_rma
)
known_errors <- of_metafor(
  known_errors, setNames(sqrt(known_errors$sigma2), c("sd_model", "sd_concept", "sd_cell"))
)

fit <- lmer(equal ~ high + size + (1 | model) + (1 | concept), rows, control = of_lmer)
sd_of <- function(fit, group, of = "(Intercept)") attr(VarCorr(fit)[[group]], "stddev")[[of]]
names_of_terms <- c("intercept", "contrast", "scale")
no_errors <- list(
  coefficients = as.list(setNames(fixef(fit), names_of_terms)),
  standard_errors = as.list(setNames(sqrt(diag(as.matrix(vcov(fit)))), names_of_terms)),
  sds = list(
    sd_model = sd_of(fit, "model"), sd_concept = sd_of(fit, "concept"), sd_cell = sigma(fit)
  ),
  log_likelihood = as.numeric(logLik(fit))
)

fit <- rma.mv(
  unequal, V,
  mods = ~ high + size, random = list(~ label | model, ~ 1 | concept, ~ 1 | cell),
  struct = "DIAG", data = rows, method = "REML", control = of_rma
)
unequal <- of_metafor(fit, c(
  sd_low = sqrt(fit$tau2[1]), sd_high = sqrt(fit$tau2[2]),
  sd_concept = sqrt(fit$sigma2[1]), sd_cell = sqrt(fit$sigma2[2])
))

# condVar of lme4 takes the coefficients as known. The error of a prediction, in which they are not,
# is from the inverse of Henderson's mixed model equations at lme4's sds (Robinson 1991, Stat. Sci.
# 6(1)).
slopes_by_lmer <- function() {
  fit <- lmer(slopes ~ size + (1 | model) + (1 | concept) + (0 + size | concept), rows,
              control = of_lmer)
  random <- ranef(fit, condVar = TRUE)
  groups <- getME(fit, "cnms")
  own <- which(names(groups) == "concept" & sapply(groups, identical, "size"))
  x <- getME(fit, "X")
  z <- as.matrix(getME(fit, "Z"))
  lambda <- as.matrix(getME(fit, "Lambda"))
  equations <- rbind(
    cbind(crossprod(x), crossprod(x, z)),
    cbind(crossprod(z, x), crossprod(z) + solve(tcrossprod(lambda)))
  )
  error <- sigma(fit)^2 * solve(equations)
  at <- ncol(x) + seq(getME(fit, "Gp")[own] + 1, getME(fit, "Gp")[own + 1])
  turn <- cbind(1, diag(length(at)))
  of_slope <- turn %*% error[c(2, at), c(2, at)] %*% t(turn)
  conditional <- attr(random$concept, "postVar")
  if (is.list(conditional)) conditional <- conditional[[which(names(conditional) == "size")]]
  list(
    coefficients = list(intercept = fixef(fit)[[1]], scale = fixef(fit)[[2]]),
    standard_errors = as.list(setNames(sqrt(diag(as.matrix(vcov(fit)))), c("intercept", "scale"))),
    sds = list(
      sd_model = sd_of(fit, "model"), sd_concept = sd_of(fit, "concept"),
      sd_cell = sigma(fit), sd_slope = sd_of(fit, "concept.1", "size")
    ),
    slope = coef(fit)$concept[, "size"],
    conditional_variance = as.vector(conditional),
    prediction_variance = diag(of_slope),
    model = random$model[, 1],
    log_likelihood = as.numeric(logLik(fit))
  )
}

# The same with known errors. A concept's own level and slope are independent (GDIAG). ranef.rma.mv
# predicts the models' levels only, so the slopes' deviations t are predicted here from metafor's
# marginal covariance M: tau^2 Z' M^-1 (y - X b), with error tau^2 I - tau^4 Z' P Z (Robinson 1991).
slopes_by_metafor <- function() {
  fit <- rma.mv(
    slopes, V,
    mods = ~ size, random = list(~ size | concept, ~ 1 | model, ~ 1 | cell),
    struct = "GDIAG", data = rows, method = "REML", control = of_rma
  )
  x <- model.matrix(fit)
  z <- model.matrix(~ 0 + concept, rows) * size
  inverse <- solve(fit$M)
  p <- inverse - inverse %*% x %*% solve(t(x) %*% inverse %*% x) %*% t(x) %*% inverse
  tau2 <- fit$tau2[2]
  of_models <- ranef(fit)$model
  list(
    coefficients = list(intercept = coef(fit)[[1]], scale = coef(fit)[[2]]),
    standard_errors = list(intercept = fit$se[1], scale = fit$se[2]),
    sds = list(
      sd_model = sqrt(fit$sigma2[1]), sd_concept = sqrt(fit$tau2[1]),
      sd_cell = sqrt(fit$sigma2[2]), sd_slope = sqrt(tau2)
    ),
    deviation = as.vector(tau2 * t(z) %*% p %*% rows$slopes),
    deviation_variance = unname(diag(tau2 * diag(ncol(z)) - tau2^2 * t(z) %*% p %*% z)),
    model = of_models$intrcpt,
    model_error = of_models$se
  )
}

# ---- means of models -----------------------------------------------------------------------------

of_test <- function(test) {
  list(value = unname(test$estimate[1] - test$estimate[2]), low = test$conf.int[1],
       high = test$conf.int[2], df = unname(test$parameter), p = test$p.value)
}
groups <- lapply(data$groups, function(group) {
  a <- group$value[group$marked]
  b <- group$value[!group$marked]
  one_sided <- sapply(MARGINS, function(margin) {
    max(
      t.test(a, b, var.equal = TRUE, mu = -margin, alternative = "greater")$p.value,
      t.test(a, b, var.equal = TRUE, mu = margin, alternative = "less")$p.value
    )
  })
  list(
    welch = of_test(t.test(a, b, conf.level = LEVEL)),
    pooled = of_test(t.test(a, b, var.equal = TRUE, conf.level = LEVEL)),
    margin = MARGINS,
    larger_one_sided_p = one_sided
  )
})

held <- lm(value ~ is_high + factor(held), data.frame(data$held))
held <- list(
  value = coef(held)[["is_high"]], se = summary(held)$coefficients["is_high", 2],
  low = confint(held, "is_high", LEVEL)[1], high = confint(held, "is_high", LEVEL)[2],
  df = df.residual(held)
)

# ---- Fisher's z ----------------------------------------------------------------------------------

# "knha" multiplies by its factor whatever it is, "adhoc" never by less than 1.
fisher <- lapply(data$fisher$z, function(z) {
  lapply(c(adhoc = "adhoc", knha = "knha"), function(test) {
    fit <- rma(z, sei = data$fisher$error, method = "PM", test = test, level = 100 * LEVEL,
               control = list(tol = 1e-12))
    list(value = tanh(coef(fit)[[1]]), low = tanh(fit$ci.lb), high = tanh(fit$ci.ub),
         se = fit$se, tau2 = fit$tau2, df = fit$k - 1)
  })
})

# ---- answers -------------------------------------------------------------------------------------

# The covariance is from the Hessian over sds and coefficients, glmer's default.
of_glmer <- glmerControl(
  optimizer = "bobyqa", optCtrl = list(rhobeg = 0.2, rhoend = 1e-9), tolPwrss = 1e-13
)
answers <- lapply(data$answers, function(counts) {
  size <- dim(counts$trials)
  rows <- expand.grid(
    h = c(-0.5, 0.5), layer = factor(seq_len(size[2])), item = factor(seq_len(size[3]))
  )
  rows$success <- as.vector(counts$successes)
  rows$failure <- as.vector(counts$trials) - rows$success
  rows <- rows[rows$success + rows$failure > 0, ]
  model <- cbind(success, failure) ~ h + (1 | item) + (0 + h | item)
  if (size[2] > 1) {
    contrasts(rows$layer) <- contr.sum(size[2])
    model <- update(model, . ~ . + layer)
  }
  fit <- glmer(model, rows, family = binomial, nAGQ = 1, control = of_glmer)
  fixed <- fixef(fit)
  of_layers <- unname(fixed[-(1:2)])
  list(
    intercept = fixed[[1]], beta = fixed[["h"]], se = sqrt(as.matrix(vcov(fit))["h", "h"]),
    layers = I(c(of_layers, -sum(of_layers))),
    sd_item = sd_of(fit, "item"), sd_item_change = sd_of(fit, "item.1", "h"),
    log_likelihood = as.numeric(logLik(fit)), n_rows = nobs(fit)
  )
})

# --------------------------------------------------------------------------------------------------

versions <- c(
  R = paste(R.version$major, R.version$minor, sep = "."),
  sapply(c("lme4", "metafor", "jsonlite"), function(name) as.character(packageVersion(name)))
)
found <- list(
  versions = as.list(versions), data_md5 = unname(tools::md5sum(file.path(folder, "data.json"))),
  level = LEVEL, known_errors = known_errors, no_errors = no_errors,
  unequal = unequal, slopes = slopes_by_lmer(), slopes_known_errors = slopes_by_metafor(),
  groups = groups, held = held, fisher = fisher,
  answers = answers
)
write_json(found, file.path(folder, "oracles.json"), digits = NA, auto_unbox = TRUE, pretty = TRUE)
