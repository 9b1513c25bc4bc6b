-- Health of a FineTuneJob for Argo CD: its Ready, Stalled and Reconciling conditions, once they are about the spec
-- that was synced. A run that failed its gate is Degraded only where no earlier model answers.
local health = { status = "Progressing", message = "Waiting for the operator" }
local status = obj.status
if status == nil or status.conditions == nil or status.observedGeneration ~= obj.metadata.generation then
  return health
end
for _, condition in ipairs(status.conditions) do
  if condition.status == "True" then
    if condition.type == "Ready" then
      return { status = "Healthy", message = condition.message }
    elseif condition.type == "Stalled" then
      return { status = "Degraded", message = condition.message }
    elseif condition.type == "Reconciling" then
      health.message = condition.message
      if condition.reason == "Suspended" then
        health.status = "Suspended"
      end
    end
  end
end
return health
